try:
    import mlflow.sklearn
finally:
    pass
try:
    import mlflow
except ImportError:
    mlflow = None
