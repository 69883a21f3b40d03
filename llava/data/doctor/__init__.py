"""`llava doctor`: everything that is wrong with training data, found before hours are spent on it.

`examine` is the whole: data in, `Diagnosis` out. `command` is its command line, `report` its HTML page, `fix`
its cleaned copy. Unlike `llava.data.formats`, which stops at the first fault, `reading` goes on behind each.
"""
