# The commands of this repository. Each one may be run again at any time.
#
#   DATA=data     the data folder that `make up` makes and `make down` stops

DATA ?= data

.DEFAULT_GOAL := help
.PHONY: help up down test lint bench bench-gate bench-tools

help:
	@echo 'make up      install what is missing, build, start the whole box with demo data'
	@echo 'make down    stop what `make up` started; the data folder stays'
	@echo 'make test    install what is missing, run every check and every test'
	@echo 'make lint    the checks alone: formatting, clippy, tidy, scripts'
	@echo 'make bench   measure everything beside nginx and HAProxy (QUICK=1: four minutes)'
	@echo 'make bench-gate  count instructions against bench/gate.json (ACCEPT=1 records them)'
	@echo 'make bench-tools the load generator beside h2load and ab, against nginx alone'
	@echo
	@echo 'DATA=DIR     the data folder of up and down (now: $(DATA))'

up:
	@./scripts/up.sh '$(DATA)'

down:
	@./scripts/down.sh '$(DATA)'

test:
	@./scripts/test.sh

lint:
	@./scripts/lint.sh

bench:
	@./scripts/bench.sh

bench-gate:
	@ACCEPT='$(ACCEPT)' ./scripts/bench-gate.sh

bench-tools:
	@./scripts/bench-tools.sh
