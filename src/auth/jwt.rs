//! JSON web tokens, as `--auth-token=jwt,…` configures them (etcd: server/auth/jwt.go, options.go).

use super::{Error, Principal};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Why a JWT configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("jwt: {0} is missing")]
    Missing(&'static str),
    #[error("jwt: pub-key does not belong to priv-key")]
    Mismatch,
    #[error("jwt: sign-method {0} is not supported")]
    Method(String),
    #[error("jwt: cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("jwt: {} does not hold a key for this sign-method: {source}", path.display())]
    Key {
        path: PathBuf,
        source: jsonwebtoken::errors::Error,
    },
}

/// How to sign and verify tokens.
#[derive(Clone, Debug)]
pub struct Options {
    /// RS256, PS384, ES256, HS512, EdDSA, …
    pub method: String,
    /// The public key, PEM. Not used with HS*.
    pub public: Option<PathBuf>,
    /// The private key, PEM; for HS*, the secret itself. Without it, tokens are verified but not issued.
    pub private: Option<PathBuf>,
    /// How long a token is valid.
    pub ttl: Duration,
}

/// Issues and verifies tokens.
pub(super) struct Jwt {
    method: Algorithm,
    sign: Option<EncodingKey>,
    verify: DecodingKey,
    ttl: Duration,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    username: String,
    /// A float, because Go decodes every JSON number as a float.
    revision: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<f64>,
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let path = path.to_owned();
    std::fs::read(&path).map_err(|source| ConfigError::Read { path, source })
}

impl Jwt {
    pub(super) fn new(options: &Options) -> Result<Self, ConfigError> {
        let method = options.method.parse();
        let method: Algorithm = method.map_err(|_| ConfigError::Method(options.method.clone()))?;
        let (private, public) = (options.private.as_deref(), options.public.as_deref());
        let wrap = |path: &Path, source| ConfigError::Key {
            path: path.to_owned(),
            source,
        };
        use Algorithm as A;
        let (sign, verify) = if matches!(method, A::HS256 | A::HS384 | A::HS512) {
            let secret = read(private.ok_or(ConfigError::Missing("priv-key"))?)?;
            if secret.is_empty() {
                return Err(ConfigError::Missing("the secret in priv-key"));
            }
            (
                Some(EncodingKey::from_secret(&secret)),
                DecodingKey::from_secret(&secret),
            )
        } else {
            let path = public.ok_or(ConfigError::Missing("pub-key"))?;
            let pem = read(path)?;
            let verify = match method {
                A::ES256 | A::ES384 => DecodingKey::from_ec_pem(&pem),
                A::EdDSA => DecodingKey::from_ed_pem(&pem),
                _ => DecodingKey::from_rsa_pem(&pem),
            };
            let verify = verify.map_err(|e| wrap(path, e))?;
            let sign = |path: &Path| {
                let pem = read(path)?;
                let key = match method {
                    A::ES256 | A::ES384 => EncodingKey::from_ec_pem(&pem),
                    A::EdDSA => EncodingKey::from_ed_pem(&pem),
                    _ => EncodingKey::from_rsa_pem(&pem),
                };
                key.map_err(|e| wrap(path, e))
            };
            (private.map(sign).transpose()?, verify)
        };
        let jwt = Self {
            method,
            sign,
            verify,
            ttl: options.ttl.max(Duration::from_secs(1)),
        };
        // Detects keys that do not belong together now rather than at the first login.
        if jwt.sign.is_some() && jwt.issue("", 0).and_then(|token| jwt.verify(&token)).is_err() {
            return Err(ConfigError::Mismatch);
        }
        Ok(Self {
            ttl: options.ttl,
            ..jwt
        })
    }

    pub(super) fn signs(&self) -> bool {
        self.sign.is_some()
    }

    pub(super) fn issue(&self, user: &str, revision: u64) -> Result<String, Error> {
        self.issue_for(user, revision, self.ttl)
    }

    /// Issues a token with a lifetime of its own.
    pub(super) fn issue_for(&self, user: &str, revision: u64, ttl: Duration) -> Result<String, Error> {
        let key = self.sign.as_ref().ok_or(Error::VerifyOnly)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let claims = Claims {
            username: user.to_owned(),
            revision: revision as f64,
            exp: Some((now + ttl).as_secs() as f64),
        };
        jsonwebtoken::encode(&Header::new(self.method), &claims, key).map_err(|e| Error::Internal(e.to_string()))
    }

    /// The user and the auth revision of a token that is valid now.
    pub(super) fn verify(&self, token: &str) -> Result<Principal, Error> {
        let mut validation = Validation::new(self.method);
        validation.leeway = 0;
        // As in golang-jwt: time claims are optional but count, and the audience does not matter.
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verify, &validation);
        let claims = claims.map_err(|_| Error::InvalidAuthToken)?.claims;
        Ok(Principal {
            user: claims.username.into(),
            revision: claims.revision as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kim(revision: u64) -> Result<Principal, Error> {
        let user = "kim".into();
        Ok(Principal { user, revision })
    }

    fn options(method: &str, private: &Path, public: Option<PathBuf>) -> Options {
        Options {
            method: method.to_owned(),
            public,
            private: Some(private.to_owned()),
            ttl: Duration::from_secs(300),
        }
    }

    #[test]
    fn tokens_are_valid_for_their_key_and_method_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let secret = file("secret", b"sesame");
        let jwt = Jwt::new(&options("HS256", &secret, None)).unwrap();
        let token = jwt.issue("kim", 7).unwrap();
        assert_eq!(jwt.verify(&token), kim(7));
        let other = Jwt::new(&options("HS256", &file("other", b"other"), None)).unwrap();
        assert_eq!(other.verify(&token), Err(Error::InvalidAuthToken));
        let stricter = Jwt::new(&options("HS512", &secret, None)).unwrap();
        assert_eq!(stricter.verify(&token), Err(Error::InvalidAuthToken));

        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let (private, public) = (
            file("ec.key", key.serialize_pem().as_bytes()),
            file("ec.pub", key.public_key_pem().as_bytes()),
        );
        let jwt = Jwt::new(&options("ES256", &private, Some(public.clone()))).unwrap();
        let token = jwt.issue("kim", 8).unwrap();
        let mut reader = options("ES256", &private, Some(public));
        reader.private = None;
        let reader = Jwt::new(&reader).unwrap();
        assert_eq!(reader.verify(&token), kim(8));
        assert_eq!(reader.issue("kim", 8), Err(Error::VerifyOnly));
    }

    #[test]
    fn an_unusable_configuration_is_refused_with_the_reason() {
        let why = |options: &Options| Jwt::new(options).err().map(|e| e.to_string()).unwrap_or_default();
        let none = Path::new("/nowhere");
        assert!(why(&options("XS256", none, None)).contains("XS256"));
        assert!(why(&options("RS256", none, None)).contains("pub-key is missing"));
        assert!(why(&options("HS256", none, None)).contains("/nowhere"));
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        assert!(why(&options("HS256", &empty, None)).contains("the secret"));
        let public = Options {
            private: None,
            public: Some(empty),
            ..options("HS256", none, None)
        };
        assert!(why(&public).contains("priv-key is missing"));
        let pair = |name: &str| {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            let (private, public) = (dir.path().join(name), dir.path().join(format!("{name}.pub")));
            std::fs::write(&private, key.serialize_pem()).unwrap();
            std::fs::write(&public, key.public_key_pem()).unwrap();
            (private, public)
        };
        let ((one, _), (_, other)) = (pair("one"), pair("other"));
        assert!(why(&options("ES256", &one, Some(other))).contains("does not belong"));
    }
}
