"""Methods: one file, one method. A folder is an axis, the question that its files answer."""
