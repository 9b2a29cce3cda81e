"""The flow and the command line: the only place that knows Prefect.

Reading order:
    mlm          the flow: six calls, one per stage
    cli          maskmill run | plan | verify | predict | serve | runs | ui
    recipes      a YAML file becomes the settings of the six stages
    plan         what would run, and why
    runners      Dask or Ray as the place where the corpus is read
    verify       every artifact's bytes and every stored mask, checked again
    ledger       what happened to each run, also after kill -9
    summary      what a run and its stages show to people
    ui           the two web servers, on this machine only
    environment  where things lie; keeps the libraries quiet, offline and local
"""
