from flops_utils.ml_repo_templates import DataManagerTemplate
from reading.source import read


class DataManager(DataManagerTemplate):
    def _prepare_data(self):
        self.data = read()

    def get_data(self):
        return self.data
