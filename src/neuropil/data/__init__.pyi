from .catalog import DatasetInfo as DatasetInfo
from .catalog import catalogue as catalogue
from .dataset import Dataset as Dataset
from .errors import DataError as DataError
from .fetching import fetch as fetch
from .folders import is_at_hand as is_at_hand
from .folders import locate as locate
from .loading import load as load
