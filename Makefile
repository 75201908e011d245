# `make help` lists what there is. ROOTS, STATE_DIR and ARGS are passed on: make checkpoint-validate ROOTS=outputs
ROOTS ?= outputs
ARGS ?=
CKPTD ?= .venv/bin/ckptd
SERVICE ?= ckptd

.DEFAULT_GOAL := help
.PHONY: help run demo test test-all check bench checkpoint-metadata checkpoint-metadata-dry-run \
  checkpoint-index-rebuild checkpoint-index-verify checkpoint-validate service-restart

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-30s %s\n", $$1, $$2}'

run: ## serve outputs/ (ARGS: arguments of ckptd serve)
	scripts/run $(ARGS)

demo: ## the same while small models are trained into it
	scripts/run --demo $(ARGS)

test: ## the tests that every change needs
	scripts/test $(ARGS)

test-all: ## all tests, the slow ones too
	scripts/test --all $(ARGS)

check: ## format, lint, types, layers
	scripts/check

bench: ## measure against the budgets
	scripts/bench inspect $(ARGS)
	scripts/bench build $(ARGS)
	scripts/bench live $(ARGS)
	scripts/bench validate $(ARGS)
	scripts/bench metadata $(ARGS)
	scripts/bench faults $(ARGS)

checkpoint-metadata: $(CKPTD) ## write the missing .metadata.yaml files under ROOTS (ARGS="--repair --remove-orphans")
	$(CKPTD) metadata $(ROOTS) $(ARGS)

checkpoint-metadata-dry-run: $(CKPTD) ## count them, say what would be done and how long it takes
	$(CKPTD) metadata $(ROOTS) --dry-run $(ARGS)

checkpoint-index-rebuild: $(CKPTD) ## write .checkpoint_index.json anew
	$(CKPTD) index rebuild $(ROOTS) $(ARGS)

checkpoint-index-verify: $(CKPTD) ## compare the index with the tree
	$(CKPTD) index verify $(ROOTS) $(ARGS)

checkpoint-validate: $(CKPTD) ## validate every checkpoint under ROOTS (ARGS="--level checksum --junit report.xml")
	$(CKPTD) validate $(ROOTS) $(ARGS)

service-restart: ## restart the systemd service
	systemctl restart $(SERVICE)

.venv/bin/ckptd:
	bash -c '. scripts/lib/venv.sh && ensure_venv run ""'
