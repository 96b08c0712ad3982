"""From a version to a folder for other systems: the adapter as it is, merged whole weights, or quantised ones."""
