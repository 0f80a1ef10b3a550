"""The data of one learner: handwritten digits, 8 by 8 pixels."""

from flops_utils.ml_repo_building_blocks import load_dataset
from flops_utils.ml_repo_templates import DataManagerTemplate

TEST_SHARE = 0.2
BRIGHTEST = 16


class DataManager(DataManagerTemplate):
    def __init__(self):
        self.train, self.test = self._prepare_data()

    def _prepare_data(self):
        # load_dataset() gives whatever data lies on the node where this runs, as one Hugging Face dataset
        dataset = load_dataset()
        images = dataset["image"].reshape((len(dataset), -1)) / BRIGHTEST
        labels = dataset["label"]
        # the same rows in every round and every run, so that results can be compared
        split = int(len(dataset) * (1 - TEST_SHARE))
        return (images[:split], labels[:split]), (images[split:], labels[split:])

    def get_data(self):
        return self.train, self.test
