def get_data():
    return 1, 2
