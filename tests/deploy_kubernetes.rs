//! The manifests of `deploy/kubernetes`: built by kustomize, checked against the schemas of
//! Kubernetes without a network, and looked at for what no schema knows.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use syncmux::config::{Config, Errors, Terminate};

/// The first one with native sidecars switched on, and the newest that the checker knows.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes")
}

/// Where `tests/install_deploy.sh` puts what it installs.
fn tools() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| std::env::home_dir().unwrap().join(".cache"));
    cache.join("syncmux-tests/bin")
}

fn kustomize(folder: &Path) -> Vec<u8> {
    let own = tools().join("kubectl");
    let output = Command::new(if own.exists() { own } else { "kubectl".into() })
        .arg("kustomize")
        .arg(folder)
        .output()
        .expect("kubectl is missing: tests/install_deploy.sh installs it");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", folder.display());
    // Deprecated fields are only mentioned.
    assert_eq!(errors, "", "{}", folder.display());
    output.stdout
}

/// What a folder builds, once it is valid.
fn validate(manifests: &[u8]) -> Result<Vec<Value>, String> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes");
    let python = tools().join("python");
    let mut child = Command::new(&python)
        .arg(tests.join("validate.py"))
        .args(VERSIONS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "{}: {error}; tests/install_deploy.sh installs it",
                python.display()
            )
        });
    // It reads everything before it writes.
    child.stdin.take().unwrap().write_all(manifests).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(errors);
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

fn build(name: &str) -> Vec<Value> {
    validate(&kustomize(&folder().join(name))).unwrap_or_else(|why| panic!("{name}: {why}"))
}

fn find<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is = |one: &&Value| {
        let found = one["metadata"]["name"].as_str().unwrap();
        one["kind"] == kind && (found == name || found.starts_with(&format!("{name}-")))
    };
    all.iter()
        .find(is)
        .unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn named<'a>(values: &'a Value, name: &str) -> &'a Value {
    let found = list(values).iter().find(|value| value["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {name} in {values}"))
}

fn pod(all: &[Value]) -> &Value {
    &find(all, "StatefulSet", "cyrus")["spec"]["template"]
}

/// What holds on both sides.
fn common(name: &str) -> Vec<Value> {
    let all = build(name);
    let template = pod(&all);
    let spec = &template["spec"];
    let init: Vec<_> = list(&spec["initContainers"])
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(
        init,
        ["sync-directory", "syncmux"],
        "{name}: the folder is made first"
    );
    let (sidecar, cyrus) = (
        named(&spec["initContainers"], "syncmux"),
        named(&spec["containers"], "cyrus"),
    );
    // A native sidecar: before Cyrus and after it.
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert!(sidecar["lifecycle"].is_null(), "the drain needs no preStop");
    assert!(spec["terminationGracePeriodSeconds"].as_u64().unwrap() >= 60);
    // One user for all: nobody sets one of his own.
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert!(spec["securityContext"]["runAsUser"].as_u64().unwrap() > 0);
    let containers = list(&spec["initContainers"])
        .iter()
        .chain(list(&spec["containers"]));
    for container in containers {
        let (who, security) = (&container["name"], &container["securityContext"]);
        for key in ["runAsUser", "runAsGroup", "privileged"] {
            assert!(
                security[key].is_null(),
                "{name}: {who} has {key} of its own"
            );
        }
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}: {who}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{name}: {who}");
        assert_eq!(
            security["capabilities"]["drop"],
            serde_json::json!(["ALL"]),
            "{name}: {who}"
        );
        assert!(
            container["resources"]["limits"]["memory"].is_string(),
            "{name}: {who}"
        );
        let image = container["image"].as_str().unwrap();
        assert!(
            image.contains('/') && image.contains(':'),
            "{name}: {who} has {image}"
        );
        // Every mount has its volume, and the sidecar sees no folder of mail.
        for mount in list(&container["volumeMounts"]) {
            let volume = mount["name"].as_str().unwrap();
            let claims = &find(&all, "StatefulSet", "cyrus")["spec"]["volumeClaimTemplates"];
            let known = list(&spec["volumes"])
                .iter()
                .any(|one| one["name"] == volume)
                || list(claims)
                    .iter()
                    .any(|one| one["metadata"]["name"] == volume);
            assert!(known, "{name}: {who} mounts {volume}, which is not there");
        }
    }
    // The probes and the scrape go where the configuration listens.
    let port = named(&sidecar["ports"], "metrics")["containerPort"]
        .as_u64()
        .unwrap();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(sidecar[probe]["httpGet"]["port"], "metrics");
        assert!(cyrus[probe]["tcpSocket"]["port"].is_string());
    }
    assert_eq!(sidecar["livenessProbe"]["httpGet"]["path"], "/live");
    assert_eq!(sidecar["readinessProbe"]["httpGet"]["path"], "/ready");
    let annotations = &template["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"], port.to_string());
    assert_eq!(annotations["prometheus.io/path"], "/metrics");
    // Selectors find this pod, and those of others are left as they were written.
    let labels = template["metadata"]["labels"].as_object().unwrap();
    let selects = |selector: &Value| {
        let selector = selector.as_object().unwrap();
        !selector.is_empty()
            && selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    };
    let set = find(&all, "StatefulSet", "cyrus");
    assert!(selects(&set["spec"]["selector"]["matchLabels"]));
    assert_eq!(set["spec"]["serviceName"], "cyrus");
    assert!(selects(&find(&all, "Service", "cyrus")["spec"]["selector"]));
    let budget = &find(&all, "PodDisruptionBudget", "cyrus")["spec"];
    assert!(selects(&budget["selector"]["matchLabels"]));
    assert_eq!(budget["maxUnavailable"], 1);
    let policy = &find(&all, "NetworkPolicy", "cyrus")["spec"];
    assert!(selects(&policy["podSelector"]["matchLabels"]));
    assert_eq!(
        policy["policyTypes"],
        serde_json::json!(["Ingress", "Egress"])
    );
    let dns = &policy["egress"][0]["to"][0]["podSelector"]["matchLabels"];
    assert_eq!(*dns, serde_json::json!({ "k8s-app": "kube-dns" }));
    all
}

fn mount<'a>(container: &'a Value, path: &str) -> &'a Value {
    let mounts = list(&container["volumeMounts"]);
    let found = mounts.iter().find(|mount| mount["mountPath"] == path);
    found.unwrap_or_else(|| panic!("nothing is mounted at {path}"))
}

/// The master: the sync directory is shared, and the configurations fit each other.
fn master(name: &str) -> Vec<Value> {
    let all = common(name);
    let spec = &pod(&all)["spec"];
    let (sidecar, cyrus) = (
        named(&spec["initContainers"], "syncmux"),
        named(&spec["containers"], "cyrus"),
    );
    let sync = mount(sidecar, "/var/lib/cyrus/sync");
    let (volume, sub) = (&sync["name"], sync["subPath"].as_str().unwrap());
    assert_eq!(mount(cyrus, "/var/lib/cyrus")["name"], *volume);
    assert!(sync["readOnly"].is_null());
    // imapd.conf includes files of a Secret, and both read it.
    for path in ["/etc/cyrus", "/etc/cyrus-replication"] {
        assert_eq!(
            mount(sidecar, path)["name"],
            mount(cyrus, path)["name"],
            "{path}"
        );
    }
    let maker = named(&spec["initContainers"], "sync-directory");
    let made = list(&maker["command"]).last().unwrap();
    assert_eq!(mount(maker, "/var/lib/cyrus")["name"], *volume);
    assert_eq!(made.as_str().unwrap(), format!("/var/lib/cyrus/{sub}"));
    assert_eq!(sidecar["args"][0], "run");
    assert!(
        list(&sidecar["args"])
            .iter()
            .any(|arg| arg.as_str().unwrap().contains("$(POD_NAME)"))
    );
    assert_eq!(sidecar["env"][0]["name"], "POD_NAME");

    let cyrus_config = &find(&all, "ConfigMap", "cyrus-config")["data"];
    let imapd_conf = cyrus_config["imapd.conf"].as_str().unwrap();
    let toml = find(&all, "ConfigMap", "syncmux-config")["data"]["syncmux.toml"]
        .as_str()
        .unwrap();
    let config = parse(toml, imapd_conf);
    let channel = &config.channels[0];
    let listen: Vec<_> = channel.listen.iter().map(ToString::to_string).collect();
    let option = |name: &str| {
        let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned());
        imapd_conf
            .lines()
            .find_map(value)
            .unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(
        listen,
        [format!("{}:{}", option("sync_host"), option("sync_port"))]
    );
    assert_eq!(channel.strict_listen[0].to_string(), "127.0.0.1:2006");
    assert_eq!(option("oneshot_sync_port"), "2006");
    assert_eq!(option("configdirectory"), "/var/lib/cyrus");
    // An upgrade of syncmux must not end replication.
    let cyrus_conf = cyrus_config["cyrus.conf"].as_str().unwrap();
    let daemon = cyrus_conf.split("DAEMON {").nth(1).unwrap();
    assert!(daemon.contains("sync_client -C /etc/cyrus/imapd.conf -r"));
    assert!(
        !cyrus_conf
            .split("DAEMON {")
            .next()
            .unwrap()
            .contains("sync_client")
    );
    // Time for both: Cyrus first, then the drain and 13 seconds.
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > config.limits.drain_grace.as_secs() + 13 + 30);
    all
}

/// As `syncmux run` in the container would, with the files of the container in a folder.
fn parse(toml: &str, imapd_conf: &str) -> Config {
    in_container(toml, imapd_conf, Config::parse)
}

/// With the container's files in a folder.
fn in_container<T>(toml: &str, imapd_conf: &str, parse: fn(&Path, &str) -> Result<T, Errors>) -> T {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(at("ca.crt"), certified.cert.pem()).unwrap();
    fs::write(at("tls.crt"), certified.cert.pem()).unwrap();
    fs::write(at("tls.key"), certified.signing_key.serialize_pem()).unwrap();
    fs::write(at("password"), "secret\n").unwrap();
    fs::create_dir(at("sync")).unwrap();
    fs::write(at("sync.conf"), "sync_password: secret\n").unwrap();
    fs::write(at("mupdate.conf"), "mupdate_password: secret\n").unwrap();
    // What it includes is read too.
    let top = folder.path().display().to_string();
    let imapd_conf = imapd_conf.replace("/etc/cyrus-replication", &top);
    fs::write(at("imapd.conf"), imapd_conf).unwrap();
    let mut text = toml.to_owned();
    for (theirs, ours) in [
        ("/etc/syncmux-tls", "."),
        ("/etc/cyrus-replication", "."),
        ("/etc/cyrus", "."),
        ("/var/lib/cyrus/sync", "sync"),
        ("/var/tmp", "."),
    ] {
        text = text.replace(theirs, &at(ours).display().to_string());
    }
    parse(Path::new("syncmux.toml"), &text).unwrap_or_else(|errors| {
        let errors: Vec<_> = errors.0.iter().map(ToString::to_string).collect();
        panic!("{errors:#?}\n{text}")
    })
}

#[test]
fn the_base() {
    common("base");
}

#[test]
fn the_master() {
    let all = master("overlays/master");
    assert_eq!(find(&all, "StatefulSet", "cyrus")["spec"]["replicas"], 1);
}

#[test]
fn the_murder() {
    let all = master("overlays/murder");
    let set = &find(&all, "StatefulSet", "cyrus")["spec"];
    assert!(set["replicas"].as_u64().unwrap() > 1);
    assert_eq!(set["template"]["spec"]["setHostnameAsFQDN"], true);
    let config = &find(&all, "ConfigMap", "cyrus-config")["data"]["imapd.conf"];
    let config = config.as_str().unwrap();
    assert!(config.contains("mupdate_server: "));
    // All that a master's file says, and more.
    let master = fs::read_to_string(folder().join("overlays/master/imapd.conf")).unwrap();
    assert!(
        config.starts_with(&master),
        "overlays/murder/imapd.conf lacks what the master's has"
    );
}

#[test]
fn the_replica() {
    let all = common("overlays/replica");
    let spec = &pod(&all)["spec"];
    let sidecar = named(&spec["initContainers"], "syncmux");
    let cyrus = named(&spec["containers"], "cyrus");
    assert_eq!(sidecar["args"][0], "terminate");
    assert_eq!(
        mount(sidecar, "/run/cyrus")["name"],
        mount(cyrus, "/run/cyrus")["name"]
    );
    let toml = find(&all, "ConfigMap", "syncmux-config")["data"]["syncmux.toml"]
        .as_str()
        .unwrap();
    let config = in_container(toml, "", Terminate::parse);
    assert_eq!(config.warnings, []);
    let listen = config.listen[0].to_string();
    let port = named(&sidecar["ports"], "csync")["containerPort"]
        .as_u64()
        .unwrap();
    assert_eq!(listen, format!("0.0.0.0:{port}"));
    let server = config.server.to_string();
    let socket = server.strip_prefix("unix:").unwrap();
    let cyrus_conf = &find(&all, "ConfigMap", "cyrus-config")["data"]["cyrus.conf"];
    assert!(
        cyrus_conf
            .as_str()
            .unwrap()
            .contains(&format!("listen=\"{socket}\""))
    );
    // The way in leads to the sidecar of that pod.
    let way_in = &find(&all, "Service", "csync")["spec"];
    assert_eq!(
        way_in["selector"]["statefulset.kubernetes.io/pod-name"],
        "cyrus-0"
    );
    assert_eq!(way_in["ports"][0]["targetPort"], "csync");
    // The masters' cluster knows it by this port.
    let masters = build("overlays/master");
    let egress = find(&masters, "NetworkPolicy", "cyrus")["spec"]["egress"].to_string();
    assert!(egress.contains(&format!("\"port\":{port}")));
}

/// A site that has Prometheus's operator: what the component adds finds what is there, and its
/// rules are those of deploy/grafana.
#[test]
fn the_monitoring() {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let site = tempfile::tempdir_in(parent).unwrap();
    let up = "../".repeat(site.path().components().count() - 1);
    let here = format!("{up}{}", folder().strip_prefix("/").unwrap().display());
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: mail\n\
         resources: [\"{here}/overlays/master\"]\ncomponents: [\"{here}/components/monitoring\"]\n"
    );
    fs::write(site.path().join("kustomization.yaml"), text).unwrap();
    let all = validate(&kustomize(site.path())).unwrap();
    let monitor = &find(&all, "ServiceMonitor", "syncmux")["spec"];
    let wanted = monitor["selector"]["matchLabels"].as_object().unwrap();
    let endpoint = &monitor["endpoints"][0];
    let services = all.iter().filter(|one| one["kind"] == "Service");
    let found: Vec<_> = services
        .filter(|service| {
            let labels = &service["metadata"]["labels"];
            wanted.iter().all(|(key, value)| labels[key] == *value)
        })
        .collect();
    assert_eq!(found.len(), 1, "each pod is asked once");
    let port = named(
        &found[0]["spec"]["ports"],
        endpoint["port"].as_str().unwrap(),
    );
    let sidecar = named(&pod(&all)["spec"]["initContainers"], "syncmux");
    named(&sidecar["ports"], port["targetPort"].as_str().unwrap());
    assert_eq!(endpoint["path"], "/metrics");

    // tests/deploy_grafana.rs tries the rules out.
    let read = |name: &str| fs::read_to_string(folder().join(name)).unwrap();
    let indented: String = read("../grafana/alerts.yml")
        .lines()
        .skip_while(|line| *line != "groups:")
        .map(|line| format!("  {line}\n").replace("  \n", "\n"))
        .collect();
    assert!(
        read("components/monitoring/prometheusrule.yaml").ends_with(&format!("spec:\n{indented}"))
    );
}

/// The checker is one: it finds a misspelt key and a wrong type.
#[test]
fn mistakes_are_found() {
    let text = String::from_utf8(kustomize(&folder().join("base"))).unwrap();
    assert!(validate(text.as_bytes()).is_ok());
    for (right, wrong) in [
        ("restartPolicy: Always", "restartPolicie: Always"),
        ("replicas: 1", "replicas: one"),
        (
            "readOnlyRootFilesystem: true",
            "readOnlyRootFileSystem: true",
        ),
    ] {
        assert!(text.contains(right));
        let error = validate(text.replace(right, wrong).as_bytes()).unwrap_err();
        assert!(
            error.contains("not valid in Kubernetes 1.29"),
            "{wrong}: {error}"
        );
    }
}
