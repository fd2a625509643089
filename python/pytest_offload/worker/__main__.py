"""Where a fresh Python begins: with the modules beside this file, wherever they are and whatever is on the path."""

import importlib.util
import os
import sys

# Not the name that they have where this project is installed, which may be in another version.
NAME = "offload_worker"


def load() -> None:
    here = os.path.dirname(os.path.realpath(__file__))
    # Python puts this file's directory first on the path, where its neighbours would hide modules of the user.
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != here]
    path = os.path.join(here, "__init__.py")
    spec = importlib.util.spec_from_file_location(NAME, path, submodule_search_locations=[here])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[NAME] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


if __name__ == "__main__":
    load()
    program = importlib.import_module(f"{NAME}.program")
    ending = importlib.import_module(f"{NAME}.ending")
    ending.end_process(program.run(sys.argv[1:]))
