"""
Thousands of jobs through a worker in bad weather: `python -m chaos --seed 7 --jobs 5000` from the folder of the tests.

`plan` says what happens to each job and when the weather turns, by the seed alone; `world` is everything around the worker;
`judge` says what each job may end as; `drive` runs it.
"""
