class DataManager
    pass
