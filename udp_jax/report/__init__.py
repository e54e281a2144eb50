"""A study's report: `report.json` and a plain table (`text`), and one self-contained page (`html`).

`text` needs only numpy; `html` and `plots` need jinja2, matplotlib and Pillow (the `eval` extra).
"""
