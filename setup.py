"""Reads settings.ini, the one source of the metadata."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser()
cfg.read(here/'settings.ini', encoding='utf-8')
s = cfg['DEFAULT']

setup(
    name=s['lib_name'], version=s['version'], description=s['description'], keywords=s['keywords'], author=s['author'],
    license=s['license'], python_requires=f">={s['min_python']}",
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['fasterai_sched*']),
    install_requires=s['requirements'].split(), extras_require={k.removesuffix('_requirements'): v.split() for k,v in s.items() if k.endswith('_requirements')})
