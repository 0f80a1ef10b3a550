import abc


class DataManager(abc.ABC):
    def _prepare_data(self):
        pass

    @abc.abstractmethod
    def get_data(self):
        ...
