import numpy as np
from flops_utils.ml_repo_templates import ModelManagerTemplate
from sklearn.linear_model import LogisticRegression

from data_manager import DataManager


class ModelManager(ModelManagerTemplate):
    def __init__(self):
        self.model = LogisticRegression(max_iter=1, warm_start=True)

    def set_model_data(self) -> None:
        (self.x_train, self.y_train), (self.x_test, self.y_test) = DataManager().get_data()

    def get_model(self):
        return self.model

    def get_model_parameters(self):
        return [self.model.coef_, self.model.intercept_]

    def set_model_parameters(self, parameters) -> None:
        self.model.coef_, self.model.intercept_ = parameters
        self.model.classes_ = np.arange(10)

    def fit_model(self) -> int:
        self.model.fit(self.x_train, self.y_train)
        return len(self.x_train)

    def evaluate_model(self):
        return 0.0, self.model.score(self.x_test, self.y_test), len(self.x_test)
