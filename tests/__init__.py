"""Tests. Imported before JAX is, so that every file has eight devices, however it is started.

With RECJAX_TYPECHECK=1, as the runner sets it, the annotations of the rooms that compute on arrays
(types, dtypes and shapes) are checked at every call.
"""
import atexit
import os
import shutil
import tempfile

if 'RECJAX_CACHE' not in os.environ:  # what a test chose is nobody else's
  os.environ['RECJAX_CACHE'] = tempfile.mkdtemp(prefix='recjax-cache-')
  atexit.register(shutil.rmtree, os.environ['RECJAX_CACHE'], ignore_errors=True)
if 'host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):  # JAX takes one of both
  os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')

CHECKED = ('recjax.models', 'recjax.decoding', 'recjax.retrieval', 'recjax.evaluation',
           'recjax.training.losses', 'recjax.policy')
# A float may be an int, as Python's type system has it.
CHECKER = 'beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))'


def check_annotations() -> None:
  """Where RECJAX_TYPECHECK is 1: what CHECKED names is checked as it is imported from here on."""
  if os.environ.get('RECJAX_TYPECHECK') == '1':
    import jaxtyping
    jaxtyping.install_import_hook(CHECKED, CHECKER)


check_annotations()
