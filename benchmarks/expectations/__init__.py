"""Do the intervals of `mls.expectation` hold, at which cost, and what do other estimators take?"""
