"""Chat in a terminal (`cli`) and a page to try methods on (`demo`)."""
