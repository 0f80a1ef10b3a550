"""The model: a logistic regression. Nothing here knows that it is trained federated."""

import warnings

import numpy as np
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

DIGITS = np.arange(10)
PIXELS = 64


class ModelManager(ModelManagerTemplate):
    def __init__(self):
        # few iterations for each round; warm_start goes on from the parameters of the round before
        self.model = LogisticRegression(max_iter=5, warm_start=True, random_state=0)
        # scikit-learn makes these in fit(); the aggregator, which has no data, needs them before
        self.model.classes_ = DIGITS
        self.model.coef_ = np.zeros((len(DIGITS), PIXELS))
        self.model.intercept_ = np.zeros(len(DIGITS))

    def set_model_data(self):
        # on learners only, so never call this in __init__
        self.train, self.test = DataManager().get_data()

    def get_model(self):
        return self.model

    def get_model_parameters(self):
        return [self.model.coef_, self.model.intercept_]

    def set_model_parameters(self, parameters):
        self.model.coef_, self.model.intercept_ = parameters

    def fit_model(self):
        images, labels = self.train
        with warnings.catch_warnings():
            # a round is meant to end before the model has converged
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(images, labels)
        return len(labels)

    def evaluate_model(self):
        images, labels = self.test
        loss = log_loss(labels, self.model.predict_proba(images), labels=DIGITS)
        return loss, self.model.score(images, labels), len(labels)
