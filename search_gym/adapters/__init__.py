"""search-gym inside other libraries: one file for each, imported only on use, its library only when it is needed."""
