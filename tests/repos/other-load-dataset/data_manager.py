from datasets import load_dataset
from flops_utils.ml_repo_templates import DataManagerTemplate


class DataManager(DataManagerTemplate):
    def __init__(self):
        self._prepare_data()

    def _prepare_data(self):
        self.dataset = load_dataset().with_format("numpy")

    def get_data(self):
        data = self.dataset.train_test_split(test_size=0.2, seed=1)
        return (data["train"]["x"], data["train"]["y"]), (data["test"]["x"], data["test"]["y"])
