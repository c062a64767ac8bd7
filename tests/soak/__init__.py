"""Load and faults: scenarios that last as long as they are told to, each on a mount of its own.

`python -m tests.soak` runs the long form, `tests/test_soak.py` the short one. A scenario is a
function of a duration in seconds; it raises when something is wrong, and returns a line that says
what was done. What clients run (`readers`, `requests`, `holders`) imports nothing but the standard
library: they start in hundredths of a second.
"""
