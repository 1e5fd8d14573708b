"""The three jobs against baselines, and the method against its own controls, on one grid that anyone can run again.

    python -m studies studies/distil.yaml

runs what the file asks for and is not in `studies/results/` yet (a killed study goes on where it stopped), and
prints the table. `--report` only prints. `python -m studies.pages` writes the tables of docs/evidence, the
pictures and what stands below the cards from the results.

Every method trains the same students on the same images with the same seeds. Its weight is chosen on validation images,
with the same number of tries for all, on one share of labels and on seeds that no table shows.
"""
