"""Reads digits out of clips: a classifier and a tracker."""
