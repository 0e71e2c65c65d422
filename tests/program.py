"""Programs run in this process, each with flags of its own: several define the same names."""

import functools
import importlib
import sys
from unittest import mock

from absl import flags, logging
from absl.testing import flagsaver

from experiments import binary


class Program:
    """A program's module, not to be imported in another way.

    Attributes:
      module: what it defines.
    """

    def __init__(self, name: str):
        self._name = name.rpartition(".")[2]
        self._flags = flags.FlagValues()
        defines = {
            define: functools.partial(getattr(flags, define), flag_values=self._flags)
            for define in ("DEFINE_string", "DEFINE_integer", "DEFINE_float", "DEFINE_bool")
            + ("DEFINE_enum", "DEFINE_list")
        }
        with mock.patch.multiple(flags, **defines):
            self.module = importlib.import_module(name)
        # absl's own, which every program has.
        self._flags["verbosity"] = flags.FLAGS["verbosity"]

    def run(self, *arguments) -> int:
        """Its whole path; the exit code."""
        argv, verbosity = [self._name, *map(str, arguments)], logging.get_verbosity()
        saved = flagsaver.save_flag_values(self._flags)
        with mock.patch.object(flags, "FLAGS", self._flags), mock.patch.object(sys, "argv", argv):
            try:
                self._flags.unparse_flags()
                binary.guarded(self.module.main)(binary.parse_flags(argv))
            except SystemExit as exit_:
                return exit_.code
            finally:
                flagsaver.restore_flag_values(saved, self._flags)
                logging.set_verbosity(verbosity)
        return 0
