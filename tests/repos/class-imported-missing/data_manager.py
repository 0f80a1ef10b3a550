import os
from parts.data import DataManager
