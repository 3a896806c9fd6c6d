use super::plan::{Edge, edges};
use super::*;

fn context(name: &str) -> Context {
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Context {
        name: name.to_owned(),
        entry: name.to_owned(),
        server: String::new(),
        client: kube::Client::try_from(config).unwrap(),
        namespace: "kube-system".to_owned(),
    }
}

#[test]
fn the_mode_decides_which_cluster_learns_of_which() {
    let pairs = |mode| -> Vec<(usize, usize)> {
        edges(mode, 3)
            .into_iter()
            .map(|Edge { reader, read }| (reader, read))
            .collect()
    };
    assert_eq!(pairs(Mode::Unicast), [(0, 1), (0, 2)]);
    assert_eq!(pairs(Mode::Bidirectional), [(0, 1), (0, 2), (1, 0), (2, 0)]);
    assert_eq!(pairs(Mode::Mesh).len(), 6);
}

#[tokio::test]
async fn endpoints_of_several_destinations_name_their_context() {
    let named = |destinations: &[&str], endpoints: &[&str]| {
        let contexts: Vec<Context> = [&["tokyo"], destinations].concat().into_iter().map(context).collect();
        let request = Request {
            destination_endpoints: endpoints.iter().map(|text| (*text).to_owned()).collect(),
            ..Request::default()
        };
        let found = endpoints_of(&contexts, &request).map_err(|error| error.to_string())?;
        Ok::<_, String>(
            found
                .iter()
                .map(|one| one.as_ref().map(Endpoints::addresses))
                .collect::<Vec<_>>(),
        )
    };
    let one = named(&["hk"], &["192.0.2.7:1", "192.0.2.8:1"]).unwrap();
    assert_eq!(one[1].as_ref().unwrap(), &["192.0.2.7:1", "192.0.2.8:1"]);
    let two = named(&["hk", "paris"], &["paris=192.0.2.7:1"]).unwrap();
    assert_eq!((&two[0], &two[1]), (&None, &None));
    assert_eq!(two[2].as_ref().unwrap(), &["192.0.2.7:1"]);
    let error = named(&["hk", "paris"], &["192.0.2.7:1"]).unwrap_err();
    assert!(
        error.contains("begin it with the context and '=', as in hk=192.0.2.7:1"),
        "{error}"
    );
    let error = named(&["hk"], &["oslo=192.0.2.7:1"]).unwrap_err();
    assert!(
        error.contains("\"oslo\", which is no destination; destinations are: hk"),
        "{error}"
    );
}
