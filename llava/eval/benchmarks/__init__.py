"""One file a benchmark: where its data is, what is asked, how answers are scored and sent in."""
