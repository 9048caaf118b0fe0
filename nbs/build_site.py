"""Build the site: nbdev processes the pages, nbconvert makes Markdown of them, Material for MkDocs the rest. Only show_doc cells are run.

    python nbs/build_site.py              into _docs/
    python nbs/build_site.py --out FOLDER

nbconvert and MkDocs, and not mkdocs-jupyter: that puts JupyterLab's styles, and scripts from the network, into every page.
"""

import argparse, ast, dataclasses, inspect, os, re, shutil, textwrap
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import latex2mathml.converter
import nbformat, yaml
from bs4 import BeautifulSoup
from fastcore.docments import MarkdownRenderer, docments
from fastcore.xtras import working_directory
from mkdocs.commands.build import build as mkdocs_build
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import BasePlugin
from nbconvert import MarkdownExporter
from nbdev.serve import proc_nbs
from pymdownx.slugs import slugify

import fasterai_sched

NBS  = Path(__file__).resolve().parent
ROOT = NBS.parent

# ---- The order: that of the file names

def pages():
    "{section: its pages}: numbered ones first, the reference by itself"
    found = sorted(p for p in NBS.iterdir() if p.suffix in ('.ipynb', '.md'))
    return {'Guide': [p for p in found if '_api.' not in p.name], 'Reference': [p for p in found if '_api.' in p.name]}

def bare(path):
    "A page's name on the site, without its number, as nbdev has it: schedules for 02_schedules.ipynb"
    if path.name.startswith('README.md'): return path.name.partition('#')[2] or 'index'
    return re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.stem.lower())

slug   = partial(slugify(case='lower'), sep='-')
README = ROOT/'README.md'
APART  = '<!-- on the site a page of its own -->'

def readme_pages():
    "README in parts, {path: text}: the first page, and the sections that are marked; the first has links in their place"
    first,*sections = re.split(r'^(?=## )', README.read_text(encoding='utf-8'), flags=re.M)
    parts,apart = [first],{}
    for own,some in groupby(sections, lambda s: APART in s):
        if not own: parts += some; continue
        links = []
        for s in some:
            title,_,text = s.removeprefix('## ').partition('\n')
            anchor = slug(title)
            links.append(f'[{title}](#{anchor})')
            apart[README.with_name(f'README.md#{anchor}')] = f'# {title}\n{text.replace(APART, "")}'
        parts.append(f'Read on: {" · ".join(links)}\n\n')
    return {README: ''.join(parts), **apart}

def sidebar():
    "Quarto's sidebar, in the same order"
    contents = [dict(section=s, contents=[p.name for p in ps]) for s,ps in pages().items()]
    text = yaml.safe_dump(dict(website=dict(sidebar=dict(contents=contents))), sort_keys=False)
    return f'# Written by build_site.py, from the names of the files\n{text}'

# ---- The reference: what show_doc shows

def name_of(o):
    "What a default or a type is called in a signature"
    if isinstance(o, str): return repr(o)
    if isinstance(o, tuple): return f"({', '.join(map(name_of, o))})"
    if isinstance(o, type) and o.__module__.startswith('torch.nn.'): return f'nn.{o.__name__}' # as people write it
    same = [n for n in fasterai_sched.__all__ if type(getattr(fasterai_sched, n)) is type(o) and getattr(fasterai_sched, n) == o]
    return same[0] if same and not isinstance(o, type) else getattr(o, '__name__', repr(o))

def annotation(a): return a.replace(' ', '') if isinstance(a, str) else name_of(a)

def parameter(p):
    "One parameter as it would be written"
    stars = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
    anno = '' if p.annotation is p.empty else f':{annotation(p.annotation)}'
    return f"{stars}{p.name}{anno}{'' if p.default is p.empty else f'={name_of(p.default)}'}"

def details(sym):
    "{parameter: what its docment says}, and what docments passes over: lines that continue one, **kwargs, what comes back unannotated"
    src = inspect.getsource(sym)
    told = {n: d.docment for n,d in docments(sym, full=True).items() if isinstance(d.docment, str)}
    for n,text in told.items():
        if more := re.search(re.escape(text) + r'((?:\n\s+# .*)+)', src): told[n] += re.sub(r'\n\s+# ', ' ', more[1])
    for n,pattern in {'kwargs': r'\*\*kwargs *# (.*)', 'return': r'\n *\).*: *# (.*)'}.items():
        if not isinstance(sym, type) and n not in told and (m := re.search(pattern, src)): told[n] = m[1]
    return told

def is_called(sym):
    "Whether it has a signature of its own to show: classes that only hold functions, or inherit theirs, have not"
    return not isinstance(sym, type) or dataclasses.is_dataclass(sym) or '__init__' in vars(sym)

def is_property(sym):
    "show_doc gives a property's function: whether it is one, by what its class has under its name"
    owner,_,name = getattr(sym, '__qualname__', '').rpartition('.')
    return isinstance(sym, property) or isinstance(getattr(getattr(inspect.getmodule(sym), owner, None), name, None), property)

class ApiRenderer(MarkdownRenderer):
    "A heading that can be linked to, the source, the signature, and the docments as a table: as comments they would be too wide to read"
    def __init__(self, sym, name=None, title_level=3):
        super().__init__(sym, name=name, title_level=title_level)
        self.of = sym.fget if isinstance(sym, property) else inspect.unwrap(getattr(sym, '__func__', sym))

    def source(self):
        "The place in the repository, as a page in nbs/ would link to it"
        path = Path(inspect.getsourcefile(self.of)).resolve().relative_to(Path(fasterai_sched.__file__).resolve().parents[1])
        return f'../{path.as_posix()}#L{inspect.getsourcelines(self.of)[1]}'

    def signature(self):
        "The call, wrapped"
        sig = inspect.signature(self.of)
        params = [p for p in sig.parameters.values() if p.name not in ('self', 'cls')]
        args = [parameter(p) for p in params]
        by_name = next((i for i,p in enumerate(params) if p.kind is p.KEYWORD_ONLY), None)
        if by_name is not None and not any(p.kind is p.VAR_POSITIONAL for p in params): args.insert(by_name, '*')
        call = f"{self.nm}({', '.join(args)})"
        if len(call) > 80: call = f'{self.nm}(\n{textwrap.indent(textwrap.fill(", ".join(args), 76, break_long_words=False), "    ")})'
        back = '' if isinstance(self.sym, type) or sig.return_annotation is sig.empty else f' -> {annotation(sig.return_annotation)}'
        return f'```python\n{call}{back}\n```'

    def doc(self):
        "The docstring, and that of a class's constructor"
        docs = [inspect.getdoc(self.of)]
        if isinstance(self.sym, type) and '__init__' in vars(self.sym) and not dataclasses.is_dataclass(self.sym):
            docs.append(inspect.getdoc(self.sym.__init__))
        return '\n\n'.join(filter(None, docs))

    def table(self):
        "A row a parameter, and what comes back"
        told = details(self.of) if is_called(self.sym) else {}
        if not told: return ''
        rows = [(f'`{n}`' if n != 'return' else '**returns**', re.sub(r'\|', r'\|', d)) for n,d in told.items()]
        return '\n'.join(['| | |', '|---|---|', *(f'| {a} | {b} |' for a,b in rows)])

    def _repr_markdown_(self):
        kind = '*property*' if is_property(self.sym) else self.signature() if is_called(self.sym) else ''
        nm = self.nm.replace('__', r'\_\_') # else bold
        parts = [f"{'#'*self.title_level} {nm} {{ #{nm} }}", f'[source]({self.source()}){{ .source }}', kind, self.doc(), self.table()]
        return '\n\n'.join(filter(None, parts))

# ---- From the repository to Markdown

def split_first(path):
    "nbdev makes the cell of the title front matter, and drops what else is in it: so make that a cell of its own"
    nb = nbformat.read(path, as_version=4)
    head = re.match(r'# .*\n*(?:> .*\n*)*', nb.cells[0].source)
    rest = nb.cells[0].source[head.end():]
    if rest: nb.cells[:1] = [nbformat.v4.new_markdown_cell(t.strip()) for t in (head[0], rest)]
    nbformat.write(nb, path)

def nbdev_pages(work):
    "The pages as nbdev leaves them, from a copy so that two builds don't meet: show_doc executed, directives obeyed"
    shutil.copytree(NBS, work/'nbs', ignore=shutil.ignore_patterns('.*', '__pycache__'))
    for p in (work/'nbs').glob('*.ipynb'): split_first(p)
    config = (ROOT/'pyproject.toml').read_text(encoding='utf-8')
    # only here: for nbdev's own commands the renderer would have to be installed
    config = config.replace('[tool.nbdev]\n', '[tool.nbdev]\nrenderer = "build_site.ApiRenderer"\n')
    (work/'pyproject.toml').write_text(config, encoding='utf-8')
    with working_directory(work): return proc_nbs(work/'nbs', n_workers=0, force=True)

def gfm(text):
    "What GitHub and Jupyter take and Python-Markdown does not: a list or a table right after a paragraph, a list in a list two spaces in"
    res,fence = [],None
    for line in text.split('\n'):
        mark = re.match(r'\s*(`{3,}(?=[^`]*$)|~{3,})', line)
        if mark and fence is None: fence = mark[1]
        elif mark and mark[1].startswith(fence): fence = None
        elif fence is None:
            kind = re.match(r'\s*([-*+] |\d+\. |\|)', line)
            before = res[-1] if res else ''
            if kind and before.strip() and not re.match(r'\s*([-*+] |\d+\. |\|)|\s', before): res.append('')
            line = re.sub(r'^ {2,3}(?=[-*+] )', '    ', line)
        res.append(line)
    return '\n'.join(res)

def from_notebook(path, docs):
    "A processed notebook as Markdown; its figures go to `docs`"
    nb = nbformat.read(path, as_version=4)
    head = yaml.safe_load(next(c.source for c in nb.cells if c.cell_type == 'raw').strip().strip('-')) # nbdev has made it of the first cell
    for c in nb.cells: c.metadata = {} # nbdev's times are no valid metadata
    exporter = MarkdownExporter(template_file=str(NBS/'site'/'page.md.j2'))
    body,resources = exporter.from_notebook_node(nb, dict(unique_key=bare(path), output_files_dir='figures'))
    for f,data in resources['outputs'].items(): (docs/f).write_bytes(data)
    about = {k: head[k] for k in ('title', 'description') if k in head}
    lead = f"> {head['description']}\n\n" if 'description' in head else ''
    return f"---\n{yaml.safe_dump(about)}---\n\n# {head['title']}\n\n{lead}{gfm(body)}"

def from_source(path):
    "A module as Markdown, with an anchor a line; the search is for prose"
    name = path.relative_to(ROOT).as_posix()
    return (f'---\ntitle: {name}\nhide: [toc]\nsearch: {{exclude: true}}\n---\n\n# {name}\n\n'
            f'~~~~~~ {{ .python linenums="1" }}\n{path.read_text(encoding="utf-8")}\n~~~~~~\n')

def source_index(at):
    "The modules, and what each says of itself"
    def row(p, name): return f"| [`{p.name}`](../{name.removeprefix('source/').removesuffix('.md')}) | {says(p)} |"
    def says(p): return ast.get_docstring(ast.parse(p.read_text(encoding='utf-8'))).splitlines()[0]
    rows = [row(p, n) for p,n in at.items() if p.parent.name == 'fasterai_sched']
    return '\n'.join(['# Source', '', '| | |', '|---|---|', *rows])

def linked(text):
    "The files of the repository that a page links to"
    return {t for t in re.findall(r'\]\(([^)\s#]+)', text) if '://' not in t}

def write_docs(work):
    "Everything for MkDocs; {file of the repository: the page it became, or the copy of it}"
    docs,processed,at = work/'docs',nbdev_pages(work),{}
    def put(source, name, text):
        at[source] = name
        (docs/name).parent.mkdir(parents=True, exist_ok=True)
        (docs/name).write_text(text, encoding='utf-8')
    (docs/'figures').mkdir(parents=True)
    for p,text in readme_pages().items(): put(p, f'{bare(p)}.md', gfm(text))
    for p in [ROOT/'CHANGELOG.md', *(p for ps in pages().values() for p in ps)]:
        put(p, f'{bare(p)}.md', from_notebook(processed/p.name, docs) if p.suffix == '.ipynb' else gfm(p.read_text(encoding='utf-8')))
    wanted = {(s.parent/t).resolve() for s,n in [*at.items()] for t in linked((docs/n).read_text(encoding='utf-8'))}
    for p in sorted({*(ROOT/'fasterai_sched').glob('*.py'), *(w for w in wanted if w.is_file())} - at.keys()):
        name = p.relative_to(ROOT).as_posix()
        if p.suffix == '.py': put(p, f'source/{name}.md', from_source(p))
        else:
            at[p] = name
            (docs/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, docs/name)
    put(NBS/'source', 'source.md', source_index(at))
    shutil.copy(NBS/'site'/'site.css', docs/'site.css')
    return docs,at

# ---- From Markdown to pages

class Pages(BasePlugin):
    "What only a finished page shows: links between files of the repository, backticked names, formulas"
    def __init__(self, docs, at):
        self.at,self.of = at,{n: p for p,n in at.items()}
        self.headings = {slug(h): p for p,text in readme_pages().items() for h in re.findall(r'^#+ (.*)', text, re.M)} # where those of README are
        api = [at[p] for p in pages()['Reference']]
        text = {n: (docs/n).read_text(encoding='utf-8').replace('\\_', '_') for n in api}
        self.names = {a or b: f'{n}#{a or b}' for n in api for a,b in re.findall(r'\{ #([\w.]+) \}|<a id="([\w.]+)"', text[n])}

    def to(self, page, target):
        "A link from a page to `target`, a file for MkDocs with or without an anchor"
        name,_,anchor = target.partition('#')
        url = re.sub(r'\.md$', '.html', name)
        return os.path.relpath(url, os.path.dirname(page.url) or '.') + (f'#{anchor}' if anchor else '')

    def link(self, page, url):
        "What a link of a page in the repository is on the site"
        path,_,anchor = url.partition('#')
        if '://' in url or url.startswith('mailto:') or page.file.src_uri not in self.of: return url
        anchor = re.sub(r'^L(\d+).*', r'__codelineno-0-\1', anchor) if anchor not in self.names else anchor
        if anchor not in self.names: anchor = anchor.lower()
        here = self.of[page.file.src_uri]
        source = (here.parent/path).resolve() if path else README if here.name.startswith('README.md') else here
        target = self.at.get(self.headings.get(anchor, here if not path else source) if source == README else source)
        if target == page.file.src_uri: return f'#{anchor}'
        return self.to(page, f'{target}#{anchor}') if target else url

    def on_page_content(self, html, page, **kwargs):
        "MkDocs calls it with each page's HTML"
        if page.file.src_uri.startswith('source/'): return html
        soup = BeautifulSoup(html, 'html.parser')
        plain_tables(soup)
        for attr in ('href', 'src'):
            for e in soup.find_all(attrs={attr: True}): e[attr] = self.link(page, e[attr])
        for e in soup('code'):
            name = e.get_text().removesuffix('()')
            if name in self.names and not e.find_parent(['a', 'pre', 'h1', 'h2', 'h3', 'h4']):
                e.wrap(soup.new_tag('a', href=self.to(page, self.names[name])))
        formulas(soup)
        return str(soup)

def plain_tables(soup):
    "Those of pandas and fastai without their own styles, and without a header where it is empty: Markdown can't say that there is none"
    for e in soup('style'): e.decompose()
    for e in soup('table'): e.attrs = {}
    for e in soup('thead'):
        if not e.get_text(strip=True): e.decompose()

def formulas(soup):
    "As MathML, which browsers draw without a script"
    for e in soup(class_='arithmatex'):
        tex,display = e.get_text().strip()[2:-2],'block' if e.name == 'div' else 'inline' # from between \( and \), or \[ and \]
        mathml = latex2mathml.converter.convert(tex, display=display).replace(r'\%', '%') # which it leaves in \text
        e.replace_with(BeautifulSoup(mathml, 'html.parser'))

def palette(media, icon, then, **more):
    "One of the three looks that the button goes through"
    return dict(media=media, toggle=dict(icon=f'material/{icon}', name=f'Switch to {then}'), **more)

THEME = dict(name='material', font=False, icon=dict(logo='material/grid'),
    features=['content.code.copy', 'navigation.footer', 'navigation.sections', 'navigation.top', 'navigation.tracking',
              'search.highlight', 'search.suggest', 'toc.follow'],
    palette=[palette('(prefers-color-scheme)', 'brightness-auto', 'light'),
             palette('(prefers-color-scheme: light)', 'weather-sunny', 'dark', scheme='default', primary='indigo', accent='indigo'),
             palette('(prefers-color-scheme: dark)', 'weather-night', "the system's", scheme='slate', primary='indigo', accent='indigo')])

EXTENSIONS = {'attr_list': {}, 'md_in_html': {}, 'sane_lists': {}, 'tables': {}, 'toc': dict(permalink=True, slugify=slugify(case='lower')),
    'pymdownx.highlight': dict(anchor_linenums=True, pygments_lang_class=True, line_spans='__span', linenums_style='pymdownx-inline'), 'pymdownx.superfences': {},
    'pymdownx.arithmatex': dict(generic=True), 'pymdownx.tilde': {}}

def config(docs, at, out):
    "MkDocs' configuration. Without theme.font, icons from the package and no analytics nothing comes from the network"
    nav = [{'Home': 'index.md'}, {'In short': [at[p] for p in readme_pages() if p != README]}, *({s: [at[p] for p in ps]} for s,ps in pages().items()), {'More': ['changelog.md', 'source.md']}]
    cfg = MkDocsConfig(config_file_path=str(docs.parent/'mkdocs.yml'))
    unchecked = dict(nav=dict(omitted_files='ignore'), links=dict(not_found='ignore', unrecognized_links='ignore', anchors='ignore'))
    cfg.load_dict(dict(site_name='fasterai_sched', site_description='Sparse training for fastai', docs_dir=str(docs), site_dir=str(out),
        use_directory_urls=False, nav=nav, theme=THEME, plugins=['search'], extra_css=['site.css'], extra=dict(generator=False),
        markdown_extensions=[{k: v} for k,v in EXTENSIONS.items()], validation=unchecked)) # the links are still to be made: see Pages
    errors,_ = cfg.validate()
    if errors: raise ValueError(errors)
    cfg.plugins['pages'] = Pages(docs, at)
    return cfg

def build(out):
    "The whole site, in `out`: a folder that is empty, or has one already"
    out = Path(out)
    if out.exists() and any(out.iterdir()) and not (out/'search'/'search_index.json').exists(): # MkDocs empties it first
        raise SystemExit(f'{out} holds something else than a site, and would be emptied: choose another folder')
    with TemporaryDirectory() as work:
        docs,at = write_docs(Path(work).resolve())
        mkdocs_build(config(docs, at, Path(out).resolve()))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', default=ROOT/'_docs')
    out = p.parse_args().out
    (NBS/'sidebar.yml').write_text(sidebar(), encoding='utf-8')
    build(out)
    print(f'{out}/index.html')

if __name__ == '__main__': main()
