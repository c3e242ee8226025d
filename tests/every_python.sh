#!/bin/sh
# The suite under each supported Python that is there (on the path, or of pyenv), each in an environment of its own.
set -eu
cd "$(dirname "$0")/.."
for version in 3.11 3.12 3.13; do
	found=
	for candidate in "python$version" "$HOME/.pyenv/versions/$version".*/bin/python; do
		if "$candidate" --version >/dev/null 2>&1; then found=$candidate; fi
	done
	if [ -z "$found" ]; then
		echo "Python $version: not found"
		continue
	fi
	echo "Python $version: $("$found" --version)"
	make VENV=".venv-$version" PYTHON="$found" test
done
