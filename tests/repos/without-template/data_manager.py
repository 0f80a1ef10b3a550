class DataManager:
    def _prepare_data(self, partition):
        self.data = partition

    @staticmethod
    def get_data():
        return [], []
