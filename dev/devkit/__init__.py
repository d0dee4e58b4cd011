"""Building blocks of the developer tools `provide.py` and `cluster.py`."""
