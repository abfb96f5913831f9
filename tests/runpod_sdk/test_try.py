from support import pictures
def test_x(served):
    t=__import__("time").monotonic()
    job = served.plane.submit({"workflow": pictures.empty_workflow()})
    print(job.wait())
    print([served.plane.submit(x).wait() for x in (None, "x", [1], {"workflow": {"1": {"class_type":"SaveOddly","inputs":{}}}}, {"workflow": pictures.empty_workflow(prefix="a\udcffb")})])
    print(served.worker.text)
    print(served.worker.children())
    print(served.plane.pings, job.posts)
