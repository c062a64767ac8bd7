"""The tests of statsfs."""
