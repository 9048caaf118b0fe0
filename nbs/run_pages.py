"""Execute the pages beside this file, and keep their output without what differs from run to run and from machine to machine.

    python nbs/run_pages.py               every page
    python nbs/run_pages.py 01 07         those whose names begin so
    python nbs/run_pages.py --strip-only  keep the output as it is, and only strip it
"""

import argparse
import re
from base64 import b64decode
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ExecutePreprocessor

NBS = Path(__file__).parent
ADDRESS = r'(?:<|&lt;|\\<)function (\S+) at 0x[0-9a-f]+(?:>|&gt;)' # of a function that is somebody's default

def strip(nb):
    "Without times, addresses, warnings, progress bars and the execution's own metadata; printed lines in one piece"
    for i,cell in enumerate(nb.cells):
        cell.id = f'cell-{i:02d}'
        cell.metadata = {}
        if cell.cell_type != 'code': continue
        cell.execution_count,outputs = None,[]
        for o in cell.outputs:
            html = ''.join(o.get('data', {}).get('text/html', ''))
            if o.get('name') == 'stderr' or '<style>' in html or '<progress' in html: continue
            if 'execution_count' in o: o.execution_count = None
            for mime,text in o.get('data', {}).items():
                if mime.startswith('text/'): o.data[mime] = re.sub(ADDRESS, r'\1', re.sub(r'(<td>|\| )\d\d:\d\d(?=</td>| \|)', r'\1', text))
            if o.output_type == 'stream' and outputs and outputs[-1].output_type == 'stream': outputs[-1].text += o.text
            else: outputs.append(o)
        cell.outputs = outputs
    nb.metadata = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    return nb

PICTURES = {'schedules.png': ('01_tutorial.schedules.ipynb', 'table = compare_schedules(')} # README's: of which page, and of the cell with this in it

def picture(name):
    "A picture of README's, as its page has it"
    page,text = PICTURES[name]
    nb = nbformat.read(NBS/page, as_version=4)
    found, = (o.data['image/png'] for c in nb.cells if text in c.source for o in c.outputs if 'image/png' in o.get('data', {}))
    return b64decode(found)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('begins', nargs='*', default=[''], help='which pages: what their names begin with')
    p.add_argument('--strip-only', action='store_true')
    a = p.parse_args()
    for path in sorted(NBS.glob('*.ipynb')):
        if not path.name.startswith(tuple(a.begins)): continue
        nb = nbformat.read(path, as_version=4)
        if not a.strip_only: ExecutePreprocessor(timeout=None, kernel_name='python3').preprocess(nb, {'metadata':{'path':str(path.parent)}})
        nbformat.write(strip(nb), path)
        print(path.name)
    for name in PICTURES: (NBS/'images'/name).write_bytes(picture(name))

if __name__ == '__main__': main()
