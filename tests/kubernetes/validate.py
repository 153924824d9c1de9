"""Reads manifests on standard input, checks them against the schemas that kubernetes-validate
brings along (no network), and prints them as one JSON list. Arguments: versions of Kubernetes."""

import json
import sys

import kubernetes_validate
import yaml

documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
failed = False
for document in documents:
    name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
    # Custom resources have no schema there; the test looks at them itself.
    if document["apiVersion"].startswith("monitoring.coreos.com/"):
        continue
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except Exception as error:  # noqa: BLE001: whatever it is, it is no valid manifest
            failed = True
            where = "/".join(map(str, getattr(error, "path", [])))
            what = str(getattr(error, "message", error))[:500]
            print(f"{name}, {where}: not valid in Kubernetes {version}: {what}", file=sys.stderr)
json.dump(documents, sys.stdout)
sys.exit(1 if failed else 0)
