"""Tests. Imported before JAX is, so that every file has eight devices, however it is started."""
import os

if 'host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):  # JAX takes one of both
  os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
