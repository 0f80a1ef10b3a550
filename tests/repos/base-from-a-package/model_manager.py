from acme_models import FederatedModel
from sklearn.base import BaseEstimator


class ModelManager(FederatedModel, BaseEstimator):
    pass
