# The two commands of the README, and what CI runs. Everything happens in .venv; nothing is installed elsewhere.
SHELL := /bin/bash
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE # images of containers set it; 300 packages compiled anew at every start of a stage take 2 s

# Variables of an environment that is active outside would lead Python, pip and uv elsewhere: only those that say where
# packages come from, and how they are fetched, are passed on.
fetching := PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_NO_INDEX PIP_FIND_LINKS PIP_TRUSTED_HOST PIP_CERT PIP_CLIENT_CERT \
  PIP_PROXY PIP_KEYRING_PROVIDER PIP_CONFIG_FILE PIP_CACHE_DIR PIP_NO_CACHE_DIR PIP_TIMEOUT PIP_DEFAULT_TIMEOUT \
  PIP_RETRIES PIP_NO_INPUT PIP_USE_FEATURE PIP_DISABLE_PIP_VERSION_CHECK UV_INDEX% UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL \
  UV_NO_INDEX UV_FIND_LINKS UV_INSECURE_HOST UV_NATIVE_TLS UV_SYSTEM_CERTS UV_KEYRING_PROVIDER UV_CONFIG_FILE \
  UV_NO_CONFIG UV_CACHE_DIR UV_NO_CACHE UV_OFFLINE UV_HTTP% UV_REQUEST% UV_CONCURRENT% UV_LINK_MODE
unexport VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONUSERBASE PYTHONPLATLIBDIR
unexport $(filter-out $(fetching),$(filter PIP_% UV_%,$(.VARIABLES)))

# The entries of a section of the lock file; `uv pip` and `pip` read them from stdin. torch and nanotron are apart from the
# rest because pip would take every build of torch for a contradiction, and .venv must not have nanotron.
locked = sed -n '/^\# $(1)$$/,/^\# /p' requirements.lock
install := install -qq --no-deps --require-hashes -r /dev/stdin
pip := .venv/bin/python -m pip
# A .venv that `python -m venv` left half-made (Debian without python3-venv), or that was moved, is made anew.
usable = head -n 2 .venv/bin/pip | grep -qF "$(realpath .venv)/bin/python" && $(pip) --version

pipeline_tests := tests/repository/test_pipeline.py

.DEFAULT_GOAL := help
.PHONY: help setup nanotron explore repro test smoke check types promises lint format clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: .venv/installed .venv/dvc-site-cache ## create .venv with the locked dependencies (the other targets do it themselves)

# uv installs 300 packages in 15 s, pip in two minutes. torch comes last: its CPU build if pip is configured to find one,
# else the registry's build with its CUDA packages. The editable install brings the command `cosmo` and fetches nothing.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; ok = (3, 11) <= v < (3, 13); sys.exit(None if ok else \
	  f"Python {v[0]}.{v[1]} found; 3.11 or 3.12 is needed: make PYTHON=python3.11 ...")'
	@echo "setup: creating .venv and installing $$($(call locked,base) | grep -c ^[^[:space:]]*==) locked packages"
	@{ $(usable); } >/dev/null 2>&1 || \
	  { mkdir -p .venv && find .venv/ -mindepth 1 -delete && $(PYTHON) -m venv .venv; }
	@$(call locked,uv) | $(pip) $(install)
	@$(call locked,base) | .venv/bin/uv pip $(install) --python .venv/bin/python 2>/dev/null || { \
	  echo "setup: uv cannot install here (a mirror that only pip is configured for?); pip does, in two minutes more"; \
	  $(call locked,base) | $(pip) $(install); }
	@$(call locked,torch-cpu) | $(pip) $(install) 2>/dev/null || { \
	  echo "setup: no CPU build of torch is at hand; installing the ordinary one with its CUDA packages (3 GB)"; \
	  $(call locked,torch) | $(pip) $(install); }
	@$(pip) install -qq --no-deps --no-build-isolation -e .
	@.venv/bin/python -m cosmopedia.cli.installed
	@touch .venv/installed && echo "setup: done"

# DVC loads pickles from its site cache, which by default is a folder in /var/tmp that everybody can write to. The .pth
# file names another one to every process of .venv, in whatever folder it runs. To `dvc` alone it also lends what parses
# each params file once and writes dvc.lock stage by stage; the copy in .venv is the same in every worktree.
.venv/dvc-site-cache: cosmopedia/execution/dvc_yaml.py | .venv/installed
	@install -d -m 700 $@
	@packages="$$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')"; \
	  cp $< "$$packages/cosmopedia_dvc_yaml.py" && printf '%s\n' \
	  'import os, sys; os.environ.setdefault("DVC_SITE_CACHE_DIR", os.path.join(sys.prefix, "dvc-site-cache"))' \
	  'import os, sys; "dvc" in map(os.path.basename, sys.orig_argv[1:3]) and __import__("cosmopedia_dvc_yaml")' \
	  > "$$packages/dvc_site_cache.pth"
	@touch $@

nanotron: setup .nanotron/installed ## create .nanotron, the environment of the nanotron trainer, next to .venv

explore: setup ## open embedding-atlas on the embedded web pages, on 127.0.0.1; its environment is .explore
	@cosmo explore

# Only what .venv has not: nanotron itself must stay out of .venv (lighteval behaves differently where it finds it), the
# atlas brings a web server and clients of services, and a second torch would take gigabytes. The .pth file lends .venv's
# packages. A section of the lock is an environment: `# nanotron` is .nanotron.
.nanotron/installed .explore/installed: .venv/installed
	@echo "$(subst .,,$(@D)): creating $(@D)"
	@rm -rf $(@D) && python -m venv --without-pip $(@D)
	@$(call locked,$(subst .,,$(@D))) | python -m pip --python $(@D)/bin/python $(install)
	@python -c 'import site; print(site.getsitepackages()[0])' > "$$($(@D)/bin/python -c \
	  'import site; print(site.getsitepackages()[0])')/cosmopedia.pth"
	@touch $@ && echo "$(subst .,,$(@D)): done"

# -P names all stages; without it DVC loads each of them twice, half a CPU second of a run with nothing to do.
repro: setup ## check the settings, then run what is out of date of the whole pipeline (dvc repro)
	@git ls-files --error-unmatch dvc.yaml >/dev/null 2>&1 || { echo "repro: this folder is no clone (a ZIP?), and DVC" \
	  "needs git: clone the repository, or run git init && git add -A && git commit -m 'from a ZIP'"; exit 2; }
	@cosmo check && dvc repro -P

# The whole pipeline, ten CPU minutes, is `make repro` at its real size and `make smoke` at a reduced one; CI runs both this
# and `make smoke`.
test: setup nanotron ## all tests but those of smoke; what this machine cannot have is skipped, with its reason
	@python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=25 --ignore $(pipeline_tests)

smoke: setup ## the whole pipeline at a reduced size, through DVC: killed, edited, repeated
	@python -m pytest --durations=10 $(pipeline_tests)

check: setup ## lint, formatting, types, and the promises about dvc.yaml, the docs and the lock
	@$(MAKE) --no-print-directory -j -Otarget lint types promises

types: setup # the longest of the three, so the others run at the same time
	@basedpyright

promises: setup
	@python -m pytest -q tests/repository/test_dvc_yaml.py tests/repository/test_docs.py tests/repository/test_locks.py

lint: setup ## ruff: rules and formatting
	@ruff check .
	@ruff format --check .

format: setup ## let ruff fix what it can
	@ruff check --fix -q . ; ruff format .

clean: ## remove what the pipeline made, but keep the completion store, DVC's cache and .venv
	@rm -rf data/[!s]* data/sources models/* metrics/[!r]* mlflow.db* mlruns .pytest_cache .ruff_cache

distclean: clean ## also remove the completion store, DVC's cache and .venv
	@rm -rf .store .dvc/cache .dvc/tmp .venv .nanotron .explore
