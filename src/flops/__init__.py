"""FLOps image builder: from an ML Git repository to federated-learning images for every platform."""

__version__ = "0.1.0"
