"""The site, built once: whole, linked, found by its search, and nothing of it from the network."""
import inspect
import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import markdown
import pytest
from bs4 import BeautifulSoup

import fasterai_sched

NBS = Path(__file__).parents[1]/'nbs'
sys.path.insert(0, str(NBS))
import build_site

pytestmark = pytest.mark.xdist_group('site')
PAGES = {p: f'{build_site.bare(p)}.html' for ps in build_site.pages().values() for p in ps}
README = {p: f'{build_site.bare(p)}.html' for p in build_site.readme_pages()}

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "{path in the site: parsed page}, and the folder"
    out = tmp_path_factory.mktemp('site')
    build_site.build(out)
    return {p.relative_to(out).as_posix(): BeautifulSoup(p.read_text(encoding='utf-8'), 'html.parser') for p in out.rglob('*.html')}, out

def prose(soup):
    "A page's own text, without its code"
    article = BeautifulSoup(str(soup.article), 'html.parser')
    for e in article(['pre', 'code']): e.decompose()
    return article.get_text(' ')

def test_every_page_is_there_and_in_the_navigation_in_the_order_of_the_numbers(site):
    nav = [a['href'] for a in site[0]['index.html'].select('.md-nav--primary a[href]')]
    assert {*PAGES.values(), *README.values()} <= set(site[0])
    assert [h for h in nav if h in PAGES.values()] == list(PAGES.values())

def test_the_readme_is_whole_on_its_pages_and_short_on_the_first(site):
    whole = (NBS.parent/'README.md').read_text(encoding='utf-8')
    titles = re.findall(r'^##+ (.*)$', re.sub(r'```.*?```', '', whole, flags=re.S), re.M)
    shown = [h.contents[0] for n in README.values() for h in site[0][n].article.find_all(['h1', 'h2', 'h3'])]
    assert sorted(shown) == sorted([*titles, 'fasterai_sched']) and len(README) == whole.count(build_site.APART) + 1 == 6
    assert len(re.findall(r'^\|[-:|]+\|$', whole, re.M)) == sum(len(site[0][n].article('table')) for n in README.values())
    assert len(site[0]['index.html'].article.get_text().split()) < 1500 and build_site.APART not in str(site[0].values())
    links = {a['href'] for n in README.values() for a in site[0][n].article('a')}
    assert {*(f'{n}.html#{n}' for n in ('what-it-costs', 'which-schedule', 'works-with', 'when-schedules')), '#a-file-without-the-zeros'} <= links
    assert 'which-schedule.html#which-schedule' in {a['href'] for a in site[0]['schedules.html'].article('a')} # from another page of the repository

def test_quartos_sidebar_is_that_of_the_files():
    stored = (NBS/'sidebar.yml').read_text(encoding='utf-8')
    assert stored == build_site.sidebar(), 'pages came or went: `make docs` writes nbs/sidebar.yml'

def test_quartos_settings_are_those_nbdev_would_write(tmp_path, monkeypatch):
    from nbdev import quarto
    cfg = quarto.get_config(NBS)
    assert cfg.custom_sidebar and cfg.nbs_path == NBS
    monkeypatch.setattr(quarto, 'get_config', lambda *a, **kw: cfg)
    monkeypatch.setitem(cfg, 'nbs_path', tmp_path)
    (tmp_path/'_quarto.yml').write_text('')
    quarto.refresh_quarto_yml()
    assert (NBS/'nbdev.yml').read_text(encoding='utf-8') == (tmp_path/'nbdev.yml').read_text(encoding='utf-8')

def test_every_link_image_and_anchor_resolves(site):
    pages,out = site
    anchors = {n: {e[k] for k in ('id', 'name') for e in s.find_all(attrs={k: True})} for n,s in pages.items()}
    broken = []
    for name,soup in pages.items():
        if name == '404.html': continue # its links are from the root of wherever it is served
        for e in soup.find_all(['a', 'img', 'link', 'script']):
            url = urlsplit(e.get('href') or e.get('src') or '')
            if url.scheme or url.netloc: continue
            target = (out/name).parent/unquote(url.path) if url.path else out/name
            target = (target/'index.html' if target.is_dir() else target).resolve()
            there = target.is_file() and (not url.fragment or unquote(url.fragment) in anchors[target.relative_to(out).as_posix()])
            if not there: broken.append(f'{name}: {url.geturl()}')
    assert not broken

def test_nothing_comes_from_the_network(site):
    pages,out = site
    for name,soup in pages.items():
        for e in soup.find_all(['script', 'img', 'iframe', 'source', 'link']):
            assert not re.match(r'(https?:)?//', e.get('src') or e.get('href') or ''), (name, e)
    for css in out.rglob('*.css'):
        assert not re.search(r'(@import|url\()\s*["\']?(https?:)?//', css.read_text(encoding='utf-8')), css

def test_the_search_finds_every_page(site):
    pages,out = site
    found = {}
    for d in json.loads((out/'search'/'search_index.json').read_text(encoding='utf-8'))['docs']:
        found.setdefault(d['location'].split('#')[0], []).append(d['title'] + ' ' + d['text'])
    for name in [*README.values(), *PAGES.values()]:
        words = set(re.findall(r'[a-z]{5,}', prose(pages[name]).lower()))
        have = set(re.findall(r'[a-z]{5,}', ' '.join(found[name]).lower()))
        assert len(words - have) <= .05*len(words), (name, words - have)

def test_no_machinery_is_left(site):
    for name in [*README.values(), *PAGES.values()]:
        article,text = site[0][name].article,prose(site[0][name])
        assert not re.search(r':::|\{\{<|\{ #|#\||AUTOGENERATED', text), name
        assert not article.find_all('code', string=re.compile('show_doc')) and 'show_doc(' not in article.get_text(), name
        assert not article.select('style, table[border]'), name

def test_what_follows_a_title_in_its_cell_is_kept(site):
    assert 'After this page you can train a sparse network' in prose(site[0]['tutorial.schedules.html'])

def test_formulas_are_drawn_by_the_browser(site):
    for name in [*README.values(), *PAGES.values()]:
        assert not site[0][name].select('.arithmatex') and '$$' not in prose(site[0][name]), name
    extensions = {k: v for k,v in build_site.EXTENSIONS.items() if k != 'pymdownx.highlight'}
    text = 'Of $s_i + (s_f - s_i)$ and `$HOME`:\n\n$$1 - \\left(1 - t\\right)^3 \\text{ from 20\\%}$$\n'
    soup = BeautifulSoup(markdown.markdown(text, extensions=list(extensions), extension_configs=extensions), 'html.parser')
    build_site.formulas(soup)
    assert [m['display'] for m in soup('math')] == ['inline', 'block'] and soup('msub') and soup('msup')
    assert soup.code.text == '$HOME' and 'from 20%' in soup.get_text().replace('\xa0', ' ')

def test_every_name_has_its_place(site):
    there = {e['id'] for p,n in PAGES.items() if '_api.' in p.name for e in site[0][n].article.find_all(id=True)}
    missing = [n for n in fasterai_sched.__all__ if n not in there]
    assert not missing, f'no page of nbs/2x_api.*.ipynb shows {missing}: add show_doc cells'

def test_what_the_readme_calls_is_on_an_api_page(site):
    readme = (NBS.parent/'README.md').read_text(encoding='utf-8')
    called = {f'{cls}.{m}' for obj,cls in dict(sp_cb='SparsifyCallback', sparsifier='Sparsifier').items() for m in re.findall(rf'\b(?<!\.){obj}\.(\w+)', readme)} - {'SparsifyCallback.sparsifier'}
    there = {e['id'] for p,n in PAGES.items() if '_api.' in p.name for e in site[0][n].article.find_all(id=True)}
    assert len(called) > 8 and called <= there, called - there

def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path/'thesis.txt').write_text('mine')
    with pytest.raises(SystemExit, match='holds something else'): build_site.build(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.txt']

def test_no_address_in_memory_is_shown(site):
    for name,soup in site[0].items(): assert not re.search(r'0x[0-9a-f]{8}', soup.get_text()), name

def test_properties_are_not_shown_as_calls(site):
    at = site[0]['api.callback.html'].find(id='SparsifyCallback.history')
    assert at.find_next('em').get_text() == 'property' and 'history()' not in at.find_parent('article').get_text().replace('\n', '')

def test_every_parameter_is_told(site):
    table = site[0]['api.callback.html'].find(id='SparsifyCallback').find_next('table')
    rows = [td.get_text() for td in table.select('td:first-child')]
    assert rows == list(inspect.signature(fasterai_sched.SparsifyCallback).parameters)
    assert 'parameter groups, in even steps' in table.get_text() # the second line of a comment

def test_names_and_sources_are_linked(site):
    links = {a['href'] for a in site[0]['tutorial.schedules.html'].article('a') if a.code}
    assert {'api.callback.html#SparsifyCallback', 'api.schedules.html#one_shot'} <= links
    source = site[0]['api.callback.html'].find('a', class_='source')['href']
    page,line = source.split('#')
    assert page == 'source/fasterai_sched/callback.py.html'
    assert site[0][page].find(id=line).parent.get_text().strip().startswith('class SparsifyCallback')

def test_lists_and_tables_as_github_takes_them():
    assert build_site.gfm('words\n- one\n  - two\n\n```\nwords\n- code\n```') == 'words\n\n- one\n    - two\n\n```\nwords\n- code\n```'
    assert build_site.gfm('words\n| a |\n|---|') == 'words\n\n| a |\n|---|'

def test_code_and_messages_go_on_in_the_next_line_and_tables_do_not(site):
    blocks = [b for n in PAGES.values() for b in site[0][n].select('.highlight')]
    shown  = [(b, b.get_text().strip('\n')) for b in blocks if 'output' in b['class']]
    assert all(('prose' in b['class']) == ('\n' not in text) for b,text in shown) and 10 < sum('prose' in b['class'] for b,_ in shown) < len(shown) - 10
    css = (site[1]/'site.css').read_text(encoding='utf-8')
    for kind in ('language-python', 'prose'): assert any(kind in b['class'] for b in blocks) and re.search(rf'\.{kind} pre > code.*pre-wrap', css)
