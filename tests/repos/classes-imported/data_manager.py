import parts.data as data

DataManager = data.Data
