"""The WebDAV door of a whole system, by each of its names."""

from urllib.parse import urlsplit


def test_a_destination_may_be_spelled_with_any_name_and_scheme_of_the_server(shared):
    plain, secure = (urlsplit(shared.run[key]).netloc for key in ("url", "https"))
    port = secure.rpartition(":")[2]
    shared.put("/site/names/0", b"moved along")
    places = ["", f"https://{secure}", f"davs://{secure}", f"http://{plain}", f"https://localhost:{port}"]
    for number, place in enumerate(places):
        headers = {"Destination": f"{place}/site/names/{number + 1}"}
        answer = shared.ask("MOVE", f"/site/names/{number}", headers=headers)
        assert answer.status_code == 201, (place, answer.text)
    assert shared.ask("GET", f"/site/names/{len(places)}").content == b"moved along"
    away = {"Destination": f"https://{urlsplit(f'//{secure}').hostname}:1/site/names/x"}
    assert shared.ask("MOVE", f"/site/names/{len(places)}", headers=away).status_code == 502
    assert shared.ask("DELETE", "/site/names").status_code == 204


def test_what_is_noted_outlives_the_connection_and_moves_along(shared):
    shared.put("/site/noted/f", b"x")
    value = '<run xmlns="urn:cms">316766</run>'
    body = f'<propertyupdate xmlns="DAV:"><set><prop>{value}</prop></set></propertyupdate>'
    answer = shared.ask("PROPPATCH", "/site/noted/f", content=body)
    assert (answer.status_code, "200 OK" in answer.text) == (207, True)
    moved = shared.ask("MOVE", "/site/noted/f", headers={"Destination": "/site/noted/g"})
    assert moved.status_code == 201
    found = shared.ask("PROPFIND", "/site/noted/", headers={"Depth": "1"})
    assert found.text.count(">316766<") == 1
    assert shared.ask("DELETE", "/site/noted").status_code == 204
