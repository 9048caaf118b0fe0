"""The house itself: which file may use which, one version, a wheel with the package and nothing else."""
import ast
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import fasterai_sched

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT/'fasterai_sched'
ARROWS = dict(schedules=set(), granularity=set(), criteria=set(), masks={'lowest'}, lowest=set(), disk=set(), history={'plots'}, live={'callback'}, compare={'callback', 'options', 'plots', 'report', 'schedules'}, report={'disk'}, plots=set(), tickets=set(), optim=set(), plan=set(), column=set(), untouched=set(),
    budgets={'masks'}, channels={'untouched'}, signals={'granularity', 'untouched'}, layers={'granularity', 'report'}, held={'granularity', 'layers', 'lowest', 'masks', 'report'},
    options={'budgets', 'criteria', 'granularity', 'layers'}, targets={'layers', 'options', 'schedules'}, doubts={'granularity', 'layers', 'targets'},
    moves={'budgets', 'held', 'lowest', 'masks', 'options', 'report'},
    sparsifier={'channels', 'criteria', 'granularity', 'held', 'layers', 'masks', 'moves', 'options', 'report', 'signals'},
    callback={'column', 'criteria', 'doubts', 'history', 'layers', 'optim', 'options', 'plan', 'plots', 'report', 'schedules', 'sparsifier', 'targets', 'tickets'})
WHEN_CALLED = {('schedules', 'plots')} # Schedule.plot and plot_schedules
OUTSIDE = {**{m:{'torch'} for m in ('granularity', 'criteria', 'layers', 'tickets', 'channels', 'signals', 'optim', 'held', 'moves', 'options', 'sparsifier')}, **{m:{'torch', 'numpy'} for m in ('masks', 'lowest', 'budgets', 'untouched')},
    **{m:{'numpy'} for m in ('schedules', 'targets')}, 'history':{'pandas'}, 'live':{'fastai', 'fastcore', 'matplotlib', 'IPython'}, 'compare':{'torch', 'numpy', 'pandas', 'fastprogress'}, 'disk':{'torch', 'numpy', 'safetensors'}, 'report':{'torch', 'numpy', 'pandas'}, 'plan':{'pandas'}, 'column':set(), 'doubts':{'torch'}, 'plots':{'numpy', 'matplotlib', 'cycler'},
    'callback':{'torch', 'numpy', 'fastai', 'fastcore', 'pandas', 'IPython'}}

def imports(module):
    "(module inside the package or None, package outside or None, whether at the top) of every import"
    tree = ast.parse((PACKAGE/f'{module}.py').read_text(encoding='utf-8'))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            for n in [node.module] if node.module else [a.name for a in node.names]: yield n, None, node in tree.body
        elif isinstance(node, ast.ImportFrom): yield None, node.module.split('.')[0], node in tree.body
        elif isinstance(node, ast.Import):
            for a in node.names: yield None, a.name.split('.')[0], node in tree.body

def test_every_file_has_its_row(): assert set(ARROWS) == {p.stem for p in PACKAGE.glob('*.py')} - {'__init__'} == set(OUTSIDE)

@pytest.mark.parametrize('module', ARROWS)
def test_arrows_go_one_way(module):
    for inside,outside,at_top in imports(module):
        if inside: assert inside in ARROWS[module] or not at_top and (module, inside) in WHEN_CALLED
        elif outside not in sys.stdlib_module_names: assert outside in OUTSIDE[module]

@pytest.mark.parametrize('module', sorted(set(ARROWS) - {'callback', 'sparsifier'}))
def test_only_the_callback_prints(module): assert 'print(' not in (PACKAGE/f'{module}.py').read_text(encoding='utf-8')

def test_the_core_runs_without_fastai():
    code = '''import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('fastai', 'fastcore'): raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import types, torch
pkg = types.ModuleType('fasterai_sched'); pkg.__path__ = [sys.argv[1]]; sys.modules['fasterai_sched'] = pkg
from fasterai_sched.sparsifier import Sparsifier
from fasterai_sched.schedules import agp
m = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3))
Sparsifier(m).sparsify_model(agp(0, 50, 1.))
print(int((m[0].weight == 0).sum()))'''
    assert subprocess.run([sys.executable, '-c', code, str(PACKAGE)], capture_output=True, text=True, check=True).stdout == '18\n'

def test_one_version_one_list_of_names():
    cfg = ConfigParser()
    cfg.read(ROOT/'settings.ini')
    assert cfg['DEFAULT']['version'] == fasterai_sched.__version__
    assert f"## {fasterai_sched.__version__}" in (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')
    pyproject = (ROOT/'pyproject.toml').read_text(encoding='utf-8') # nbdev reads these two there
    assert f'name = "{cfg["DEFAULT"]["lib_name"]}"' in pyproject and f'requires-python = ">={cfg["DEFAULT"]["min_python"]}"' in pyproject
    space = {}
    exec('from fasterai_sched import *', space)
    assert set(fasterai_sched.__all__) == set(space) - {'__builtins__'} and len(set(fasterai_sched.__all__)) == len(fasterai_sched.__all__)

@pytest.mark.parametrize('module', ARROWS)
def test_every_public_thing_has_a_docstring(module):
    tree = ast.parse((PACKAGE/f'{module}.py').read_text(encoding='utf-8'))
    assert ast.get_docstring(tree)
    events = {'before_epoch', 'after_cancel_fit'}
    private = {id(f) for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and c.name.startswith('_') for f in ast.walk(c)}
    for node in ast.walk(tree):
        if id(node) in private: continue
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_') and node.name not in events:
            inner = any(node in ast.walk(f) and node is not f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef))
            assert inner or ast.get_docstring(node) or node.name in ('__init__',) or any(isinstance(d, ast.Name) and d.id == 'property' or isinstance(d, ast.Attribute) and d.attr == 'setter'
                                                                      for d in node.decorator_list), node.name

def test_the_wheel_holds_the_package_only_and_imports(tmp_path):
    src = shutil.copytree(ROOT, tmp_path/'src', ignore=shutil.ignore_patterns('.*', 'build', '*.egg-info', '__pycache__')) # leaves no build/ behind
    subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', tmp_path, src], check=True, capture_output=True)
    wheel, = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        z.extractall(tmp_path/'site')
        meta = z.read(next(n for n in names if n.endswith('METADATA'))).decode()
    assert {n.split('/')[0] for n in names if '.dist-info' not in n} == {'fasterai_sched'}
    assert sorted(Path(n).stem for n in names if n.startswith('fasterai_sched/')) == sorted([*ARROWS, '__init__'])
    assert all(f'Requires-Dist: {p}' in meta for p in ('torch', 'fastai', 'fastcore', 'numpy')) and 'torch==' not in meta
    out = subprocess.run([sys.executable, '-c', 'import fasterai_sched; print(fasterai_sched.__file__)'], cwd=tmp_path, capture_output=True, text=True,
                         check=True, env={'PYTHONPATH':str(tmp_path/'site'), 'PATH':'', 'HOME':str(tmp_path)}).stdout
    assert Path(out.strip()).is_relative_to(tmp_path/'site')
