"""What stands and those who use them have in common."""

# It bounds a test that fails.
LIMIT_S = 30.0

# The two models of a stand.
ONE = "one"
OTHER = "other"
