# One-line wrappers of dev.py, which needs only Python 3.11 or later.
PYTHON ?= python3

demo test check faults clients bench lock setup:
	$(PYTHON) dev.py $@ $(ARGS)

.PHONY: demo test check faults clients bench lock setup
