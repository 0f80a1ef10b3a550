from .model import Model as ModelManager
